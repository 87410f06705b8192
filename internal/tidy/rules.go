package tidy

import (
	"go/ast"
	"go/token"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// machinePath finds what only one machine knows: folders of the place where
// this was written, and hosts of package registries. The brackets keep it from
// finding itself.
var machinePath = regexp.MustCompile(`/[w]ork/|/[f]arm/|/[r]oot/go|https?://(proxy|deb|registry)\.|proxy\.[g]olang\.org|deb\.[d]ebian\.org`)

// marker finds notes that something is unfinished.
var marker = regexp.MustCompile(`\b([F]IXME|[X]XX)\b`)

// vagueNames say nothing about what a package does.
var vagueNames = []string{"util", "utils", "common", "types", "helper", "helpers", "misc"}

func checkText(r *report, name string, src []byte) {
	if strings.HasSuffix(name, "go.sum") || strings.HasSuffix(name, "tools.sum") {
		return
	}
	line := 0
	for text := range strings.Lines(string(src)) {
		line++
		if found := machinePath.FindString(text); found != "" {
			r.line(name, line, "machine path or registry host %q", found)
		}
	}
}

func checkSizes(f *goFile) {
	if f.lines > fileLinesMax && !f.isTest {
		f.line(f.name, f.lines, "file of %d lines, limit %d", f.lines, fileLinesMax)
	}
	for _, decl := range f.file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		first, last := f.fset.Position(fn.Pos()).Line, f.fset.Position(fn.End()).Line
		if lines := last - first + 1; lines > funcLinesMax {
			f.at(fn.Pos(), "%s is %d lines, limit %d", fn.Name.Name, lines, funcLinesMax)
		}
	}
}

func checkPackageName(f *goFile) {
	if name := strings.TrimSuffix(f.file.Name.Name, "_test"); slices.Contains(vagueNames, name) {
		f.at(f.file.Name.Pos(), "package name %s says nothing", name)
	}
}

func checkMarkers(f *goFile) {
	for _, group := range f.file.Comments {
		for _, comment := range group.List {
			if found := marker.FindString(comment.Text); found != "" {
				f.at(comment.Pos(), "%s left in", found)
			}
		}
	}
}

func checkPackageComments(r *report, documented map[string]bool) {
	for _, folder := range slices.Sorted(maps.Keys(documented)) {
		if !documented[folder] {
			r.line(folder, 1, "package without a comment")
		}
	}
}

// checkErrorf wants a wrapped error, so that callers can find the cause.
func checkErrorf(f *goFile) {
	ast.Inspect(f.file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || !isSelector(call.Fun, "fmt", "Errorf") || len(call.Args) < 2 {
			return true
		}
		format, ok := call.Args[0].(*ast.BasicLit)
		if !ok || format.Kind != token.STRING {
			return true
		}
		text, err := strconv.Unquote(format.Value)
		if err != nil {
			return true
		}
		for i, verb := range verbs(text) {
			if i+1 < len(call.Args) && verb != 'w' && verb != 'T' && isError(call.Args[i+1]) {
				f.at(call.Args[i+1].Pos(), "error formatted with %%%c, not %%w", verb)
			}
		}
		return true
	})
}

// verbs returns the verbs of a format in the order of the arguments they use;
// '*' stands for an argument that is a width or a precision.
func verbs(format string) (out []byte) {
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			continue
		}
		for i++; i < len(format) && strings.IndexByte("+-# 0123456789.*", format[i]) >= 0; i++ {
			if format[i] == '*' {
				out = append(out, '*')
			}
		}
		if i < len(format) && format[i] != '%' {
			out = append(out, format[i])
		}
	}
	return out
}

// isError guesses by the name; err.Error() counts too.
func isError(arg ast.Expr) bool {
	switch arg := arg.(type) {
	case *ast.Ident:
		return isErrorName(arg.Name)
	case *ast.SelectorExpr:
		return isErrorName(arg.Sel.Name)
	case *ast.CallExpr:
		sel, ok := arg.Fun.(*ast.SelectorExpr)
		return ok && sel.Sel.Name == "Error" && len(arg.Args) == 0
	}
	return false
}

func isErrorName(name string) bool {
	return name == "err" || strings.HasSuffix(name, "Err") || strings.HasPrefix(name, "Err")
}

func isSelector(e ast.Expr, pkg, name string) bool {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg
}
