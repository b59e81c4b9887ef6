"""What every kind of file shares: writing whole files, and reading fields by their type and range."""

from .schema import (
    Boolean,
    Choice,
    Integer,
    Items,
    Json,
    Kind,
    Maybe,
    Number,
    Record,
    Table,
    Tagged,
    Text,
    parse_json,
    read_json,
    record_of,
    shown,
)
from .writing import check_writable, replacing, write_file

__all__ = [
    "Boolean",
    "Choice",
    "Integer",
    "Items",
    "Json",
    "Kind",
    "Maybe",
    "Number",
    "Record",
    "Table",
    "Tagged",
    "Text",
    "check_writable",
    "parse_json",
    "read_json",
    "record_of",
    "replacing",
    "shown",
    "write_file",
]
