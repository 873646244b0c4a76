"""The demonstration: real documentation strings in a network of nodes, questions, routes, streamed answers."""
