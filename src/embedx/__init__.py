"""embedx: frozen encoders over large corpora, vectors in Delta, FAISS indexes, scikit-learn heads."""
