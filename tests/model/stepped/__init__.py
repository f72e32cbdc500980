"""The real code on real servers, each replica in steps: it goes on when it is told, and stops at its next gate."""
