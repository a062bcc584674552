//! A Hugging Face folder opened for reading.
