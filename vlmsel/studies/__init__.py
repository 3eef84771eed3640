"""Studies: the same steps over seeds, subsets and scorers, and what is measured of them."""
