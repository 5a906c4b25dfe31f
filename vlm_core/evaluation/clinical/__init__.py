"""Clinical agreement: what an answer asserts about an image, and whether the reference asserts the same.

`lexicon` reads the phrases, `assertions` finds them with their negation, `agreement` compares two texts.
"""
