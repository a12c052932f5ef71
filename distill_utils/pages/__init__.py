"""What a person looks at: the report page of a run, its figures, the captions nearest to learned texts."""
