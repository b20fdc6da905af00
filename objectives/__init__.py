"""One trial: data, training, evaluation; quality, peak memory and seconds."""
