"""Reports and comparisons as one HTML file each, readable without a network and without scripts."""
