"""The same model behind other people's servers. Each file runs in an environment of its own."""
