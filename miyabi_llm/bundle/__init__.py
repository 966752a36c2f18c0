"""Carry a model to a machine without a network: `export` writes one plain file, `import_` reads it with suspicion.

The same model gives the same bytes: the headers depend on nothing but the model.
"""

from miyabi_llm.bundle.read import Imported, import_
from miyabi_llm.bundle.write import Exported, export

__all__ = ["Exported", "Imported", "export", "import_"]
