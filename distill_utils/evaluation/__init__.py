"""How good a set is: students, recall, the protocols that choose what is reported, baselines, tables."""
