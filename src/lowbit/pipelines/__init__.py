"""Texts in, results out: what batch jobs and the service do with a model.

pipeline.py        the two steps: texts become items of token ids, batches of items become results
embedding.py       a vector for a text (sentence_modules.py and pooling.py say how)
classification.py  a score for each label, of a text or a pair of texts
translation.py     a text for a text, by an encoder–decoder
generation.py      a continuation of a text, by a decoder
opened.py          the one that fits a folder
"""
