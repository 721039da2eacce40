"""What notebooks import, what executes them, what builds the pages."""
