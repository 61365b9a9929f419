// Package manifest is what models and their files are called: names in Ollama's form, and manifests, the
// short JSON texts that name the files (blobs) of a model by digest and size.
//
// It is values only. A model is the SHA-256 of its manifest's bytes, so that these are never written anew:
// who holds them passes them on as they came.
//
// Start reading at Parse and ParseName.
package manifest
