// The order of the results of a search, and what stands below each: what its page begins with.
// The page does not fetch excerpts as Sphinx would, so a search works from disk, too.

// Questions in a reader's words, and the page that answers them: it comes first if it is found.
const ANSWERS = [
  [/which (method|one)|should i use|best method|recommend|compare|ranking/, "notebooks/14_scoreboard"],
  [/nois(y|e).*label|label.*noise|wrong labels?|calibrat/, "notebooks/14_scoreboard"],
  [/fine.?tun|few.?shot|few examples|pre-?trained/, "notebooks/13_fine_tuning"],
  [/image|mnist|cifar|photo/, "notebooks/12_images"],
  [/^cit(e|ing|ation)|bibtex/, "book/intro"],
  [/learning rate|tun(e|ing)/, "notebooks/11_two_classes_in_the_plane"],
  [/flatness predict|generali[sz]/, "notebooks/18_which_measure_predicts"],
  [/training loop|optimizer|your own/, "notebooks/A1_in_your_own_loop"],
  [/lightning|hugging ?face|accelerate|mixed precision|ddp|recipe/, "notebooks/A3_recipes"],
  [/rerun|reproduc|install/, "book/rerun"],
  [/^(ema|swa)$|averag/, "notebooks/10_averaging_the_weights"],
  [/^records?$|csv/, "notebooks/A4_records"],
  [/^a?sam$|sharpness.aware/, "notebooks/06_sharpness_aware_minimization"],
  [/^i?flood/, "notebooks/04_flooding"],
  [/^softad|soft ascent/, "notebooks/05_soft_ascent_descent"],
  [/^gnp$|gradient.norm/, "notebooks/07_gradient_norm_penalty"],
  [/^nso$|noise stability|weight.?noise/, "notebooks/08_noise_stability"],
  [/^fam$|relative flatness/, "notebooks/09_relative_flatness"],
  [/trace|eigenvalue|hessian|curvature/, "notebooks/15_measuring_curvature"],
  [/edge of stability/, "notebooks/16_edge_of_stability"],
];

const query = (new URLSearchParams(location.search).get("q") || "").toLowerCase().trim();
const answer = ANSWERS.find(([question]) => question.test(query));

// Sphinx's weights, but for what it leaves open: of the glossary, only the very word comes early.
var Scorer = {
  score: ([page, , anchor, , score]) => {
    if (answer && page === answer[1] && !anchor) return 1000;
    return page === "book/glossary" && score < 100 ? score / 10 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};

const leads = JSON.parse(document.getElementById("leads").textContent);
const shown = new Set();

function complete(item) {
  const link = item.querySelector("a");
  const address = link.getAttribute("href");
  const [page, anchor] = address.split(/\.html#?/);
  if (shown.has(address)) return item.remove(); // the title of a page is found as a section, too
  shown.add(address);
  if (page === "book/glossary" && anchor) {
    link.textContent += `: ${anchor.replace(/^term-/, "").replaceAll("-", " ")}`;
  } else if (leads[page] && !anchor) {
    const line = item.appendChild(document.createElement("p"));
    line.className = "context";
    line.textContent = leads[page];
  }
}

new MutationObserver((changes) => {
  const added = changes.flatMap((change) => [...change.addedNodes]);
  added.filter((node) => node.parentNode?.matches("ul.search")).forEach(complete);
}).observe(document.getElementById("search-results"), { childList: true, subtree: true });
