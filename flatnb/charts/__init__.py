"""Charts that a reader can change, each in the place of a picture.

Altair describes a chart. Colab and Jupyter show it by Altair's own means; on a page of
the book book/_static/play/chart.js does, from the description in the page. All numbers
are computed before, in Python: a control only selects among them.
"""

from flatnb.charts.board import scoreboard
from flatnb.charts.descent import descent
from flatnb.charts.groups import groups
from flatnb.charts.page import about, choice, data, pick, script, show, slider, switch
from flatnb.charts.regions import Points, Region, regions
from flatnb.charts.spectra import spectra

__all__ = [
    "Points",
    "Region",
    "about",
    "choice",
    "data",
    "descent",
    "groups",
    "pick",
    "regions",
    "scoreboard",
    "script",
    "show",
    "slider",
    "spectra",
    "switch",
]
