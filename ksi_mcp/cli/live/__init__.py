"""Views of a terminal that follow what happens: of one run, and of everything."""
