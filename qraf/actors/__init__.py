"""Nodes that live long: plain nodes and hosts, and the runtimes that hold them."""
