"""The network: its description in YAML, placement, and the router. No actor in sight."""
