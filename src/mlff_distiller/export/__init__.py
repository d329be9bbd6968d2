"""A student for other engines: ``export(engine, student, out)`` and, run there, its check."""
