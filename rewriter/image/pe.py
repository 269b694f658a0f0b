"""The PE header that an EFI stub gives a Linux boot image, read with lief."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass

import lief

__all__ = ["PE_CHECKSUM_OFFSET", "PeFacts", "certificate_entry_offset", "pe_facts"]

PE_CHECKSUM_OFFSET = 24 + 64  # from the PE signature; the same in PE32 and PE32+
CERTIFICATE_INDEX = 4  # of the data directories
DIRECTORIES_OFFSET = {0x10B: 24 + 96, 0x20B: 24 + 112}  # by optional header magic
WIDTHS = {0x14C: 32, 0x8664: 64}
PE_POINTER = 0x3C
MAX_SECTIONS = 96  # the PE loader's own limit
HEADER_BYTES = 64 << 10  # where a boot loader finds the PE header


@dataclass(frozen=True)
class PeFacts:
    """Entry (file offset) and width of the EFI stub, where the PE header is, and the signature's place."""

    entry_offset: int
    width: int
    pe_offset: int
    certificate: tuple[int, int]


def pe_facts(data: bytes) -> PeFacts | None:
    """The facts, or None when there is no sane PE header: then the file simply cannot start from EFI."""
    if data[:2] != b"MZ" or len(data) < PE_POINTER + 4:
        return None
    at = struct.unpack_from("<I", data, PE_POINTER)[0]
    if at + 24 > min(len(data), HEADER_BYTES) or data[at : at + 4] != b"PE\0\0":
        return None
    machine, sections = struct.unpack_from("<HH", data, at + 4)
    if machine not in WIDTHS or sections > MAX_SECTIONS:
        return None
    config = lief.PE.ParserConfig()
    config.parse_signature = config.parse_exports = config.parse_imports = False
    config.parse_reloc = config.parse_rsrc = config.parse_exceptions = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            binary = lief.PE.parse(data, config)
        if binary is None:
            return None
        entry = binary.rva_to_offset(binary.optional_header.addressof_entrypoint)
        directory = binary.data_directory(lief.PE.DataDirectory.TYPES.CERTIFICATE_TABLE)
        certificate = (directory.rva, directory.size) if directory is not None else (0, 0)
    except (RuntimeError, ValueError, MemoryError, TypeError, AttributeError):
        return None
    if not 0 <= entry < len(data) or certificate[0] + certificate[1] > len(data):
        return None
    return PeFacts(entry, WIDTHS[machine], at, certificate)


def certificate_entry_offset(data: bytes | bytearray, pe_offset: int) -> int:
    """File offset of the certificate table's data directory entry; 0 when the header has none."""
    magic = struct.unpack_from("<H", data, pe_offset + 24)[0]
    directories = DIRECTORIES_OFFSET.get(magic)
    if directories is None:
        return 0
    count = struct.unpack_from("<I", data, pe_offset + directories - 4)[0]
    return pe_offset + directories + 8 * CERTIFICATE_INDEX if count > CERTIFICATE_INDEX else 0
