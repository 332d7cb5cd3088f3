"""How packets move once it is decided where they go: the flows of architecture section 5 and the planes that hold them."""
