"""roberta_dist: pretraining of RoBERTa-style encoders on one machine or a cluster."""

__version__ = "0.1.0"
