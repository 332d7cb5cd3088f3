"""How packets move once it is decided where they go: the flows and the planes that hold them."""
