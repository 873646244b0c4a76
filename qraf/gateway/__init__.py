"""The floor that speaks HTTP and WebSocket."""
