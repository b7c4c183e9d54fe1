"""Check what torch's reader does not check in a file of torch.save: damage.

There are two formats: a zip since torch 1.6, and five consecutive pickles before that.
"""

import os
import zipfile

from mmsb.checkpoints.stand_ins import require


def check(path: str | os.PathLike, *, checksums: bool = True) -> bool:
    """Check the records of a file.

    Args:
        path: path of the file.
        checksums: whether to verify the checksums of all records, which reads the whole file, or of the pickles only.

    Returns:
        whether the file is a zip.

    Raises:
        OSError: the file cannot be opened.
        Exception: of any type, if the file is damaged or is not a file of torch.save.
    """
    with open(path, 'rb') as file:
        start = file.read(4)
        if start != b'PK\x03\x04':
            require(start[:1] == b'\x80', 'neither a zip nor a pickle')  # torch unpacks the tars of its first versions
            return False
        with zipfile.ZipFile(file) as archive:
            compressed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
            require(not compressed, 'zip: compressed records, which torch.save does not write')
            damaged = archive.testzip() if checksums else None  # torch does not verify checksums
            require(damaged is None, f'it is damaged: the checksum of {damaged} is wrong')
            pickles = [name for name in archive.namelist() if name.endswith('data.pkl')]
            require(bool(pickles), 'zip: no data.pkl')
            for name in () if checksums else pickles:
                archive.read(name)  # verifies its checksum
    return True
