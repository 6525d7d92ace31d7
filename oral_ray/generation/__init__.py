"""From conditions to adapters: the factory, what may be asked of it, and the service without its wire."""
