"""Training on the tasks of evaluation/, in float or towards integers (qat/)."""
