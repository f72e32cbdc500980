"""The demo: real servers from wheels, a control plane's data, the Procfile running, and a live view of it."""
