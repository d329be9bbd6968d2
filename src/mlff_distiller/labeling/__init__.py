"""Labelling: structures in, checked labels in a dataset; resumable, on one worker or many."""
