"""A study as one HTML file, readable without a network and without scripts."""
