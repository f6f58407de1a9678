"""Fine-tuning and evaluation of models. Imported by the command line alone."""
