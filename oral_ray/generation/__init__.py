"""From conditions to adapters: the factory, and the service without its wire."""
