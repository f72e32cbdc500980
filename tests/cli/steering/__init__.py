"""The commands about runs, as an operator types them."""
