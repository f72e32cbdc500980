"""An overview as an operator gets it: on a screen, or as one document."""
