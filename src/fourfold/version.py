"""The version of fourfold, for those that may not import the package itself."""

VERSION = "0.1.0"
