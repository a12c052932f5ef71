"""The real data as models see them: train pairs, val and test galleries, captions already embedded."""
