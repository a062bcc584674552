//! The dialects that clients speak. Wire types stop here.
