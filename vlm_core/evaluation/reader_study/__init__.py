"""Reader studies: readers compare blinded answers in an offline page, and their judgements are scored.

`draw` chooses the questions, `study` writes the page and its key, `readings` scores the files that readers save.
"""
