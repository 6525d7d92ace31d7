"""Evidence suites: stages, headline figures, pages."""
