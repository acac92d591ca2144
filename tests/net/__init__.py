"""Tests over networks that break: hosts in namespaces, DNS whose answers change, lost packets."""
