package tidy

import (
	"go/ast"
	"go/token"
)

// checkDocs wants a comment on every exported name outside commands and tests.
// A comment on a group of constants or variables, or at the end of the line,
// is one too.
func checkDocs(f *goFile) {
	if f.isTest || f.file.Name.Name == "main" {
		return
	}
	for _, decl := range f.file.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			if decl.Doc == nil && decl.Name.IsExported() && hasExportedReceiver(decl) && !isWellKnown(decl) {
				f.at(decl.Pos(), "%s has no comment", decl.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				checkSpec(f, decl, spec)
			}
		}
	}
}

func checkSpec(f *goFile, decl *ast.GenDecl, spec ast.Spec) {
	grouped := decl.Doc != nil
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		if spec.Name.IsExported() && !grouped && spec.Doc == nil && spec.Comment == nil {
			f.at(spec.Pos(), "%s has no comment", spec.Name.Name)
		}
	case *ast.ValueSpec:
		for _, name := range spec.Names {
			if name.IsExported() && !grouped && spec.Doc == nil && spec.Comment == nil && !follows(decl, spec) {
				f.at(name.Pos(), "%s has no comment", name.Name)
			}
		}
	}
}

// follows reports whether a value stands in a group behind one that has a
// comment, and takes its type or value from there.
func follows(decl *ast.GenDecl, spec *ast.ValueSpec) bool {
	if decl.Tok != token.CONST || spec.Values != nil {
		return false
	}
	for _, other := range decl.Specs {
		value, ok := other.(*ast.ValueSpec)
		if !ok || value == spec {
			break
		}
		if value.Doc != nil || value.Comment != nil {
			return true
		}
	}
	return false
}

func hasExportedReceiver(fn *ast.FuncDecl) bool {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return true
	}
	kind := fn.Recv.List[0].Type
	if star, ok := kind.(*ast.StarExpr); ok {
		kind = star.X
	}
	if index, ok := kind.(*ast.IndexExpr); ok {
		kind = index.X
	}
	name, ok := kind.(*ast.Ident)
	return !ok || name.IsExported()
}

// isWellKnown reports whether a method has the name of an interface method
// that every reader knows.
func isWellKnown(fn *ast.FuncDecl) bool {
	switch fn.Name.Name {
	case "Error", "String", "Unwrap", "Is", "Len", "Less", "Swap":
		return fn.Recv != nil
	}
	return false
}
