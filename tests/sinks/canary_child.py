"""A child that ends with status 0 when nothing in its environment is a canary."""

import os
import sys

sys.exit(any("canary" in f"{name}={value}" for name, value in os.environ.items()))
