//! The checkpoint's chat template.
