"""Ladders: one operator in numbered versions, from the loop one would write first to the one that is shipped."""
