"""One module for each group of routes: ``router(state)`` returns them."""
