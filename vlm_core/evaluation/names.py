"""Names in the results of an evaluation, for whoever reads them: no model and no torch is needed here."""

RIGHT, SHUFFLED, BLANK, QUESTION_ONLY = "right", "shuffled", "blank", "question_only"
"""Conditions that the questions are asked under: their own images, and the controls."""

MODEL = "model"
"""The variant in question: the evaluated model, with the right images."""

UNSEEN = "not seen in training"
"""The group of questions about cases that are not in the training split."""
