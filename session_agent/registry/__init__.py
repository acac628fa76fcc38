"""Kasm's workspace registries: what is wrong with an entry, and what Kasm will warn of."""
