# The part of nixpkgs' `lib` that our own Nix files use, written anew and small: options, modules and a few functions.
#
# It stands in for nixpkgs where no nixpkgs is to be had, so that every check can at least evaluate what we wrote. It is
# stricter than nixpkgs in what it knows (an unknown function is an error) and no judge of what nixpkgs does: with
# NIXPKGS set, the same tests run against the real one.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    catAttrs
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    genList
    hasAttr
    head
    intersectAttrs
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    mapAttrs
    removeAttrs
    sort
    stringLength
    substring
    tail
    zipAttrsWith
    ;

  tagged = tag: value: isAttrs value && (value._type or null) == tag;
  isOption = tagged "option";
  showPath = concatStringsSep ".";

  # Properties: `mkIf`, `mkMerge`, `mkOverride`, `mkOrder`.
  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkOrder = order: content: {
    _type = "order";
    inherit order content;
  };

  # Moves properties from a set to its values, so that its names are known before any condition is evaluated.
  pushDown =
    value:
    if tagged "merge" value then
      concatMap pushDown value.contents
    else if tagged "if" value then
      map (mapAttrs (_: mkIf value.condition)) (pushDown value.content)
    else if tagged "override" value then
      map (mapAttrs (_: mkOverride value.priority)) (pushDown value.content)
    else
      [ value ];

  # The plain definitions in a value with properties.
  discharge =
    value:
    if tagged "merge" value then
      concatMap discharge value.contents
    else if tagged "if" value then
      if value.condition then discharge value.content else [ ]
    else if tagged "override" value then
      map (definition: definition // { inherit (value) priority; }) (discharge value.content)
    else if tagged "order" value then
      map (definition: definition // { inherit (value) order; }) (discharge value.content)
    else
      [
        {
          inherit value;
          priority = 100;
          order = 1000;
        }
      ];

  # What the definitions of one option come to: those of the best priority, in their order, merged by its type.
  mergeOption =
    path: option: raw:
    let
      type = option.type or types.anything;
      given = concatMap discharge raw;
      best = foldl' (low: d: if d.priority < low then d.priority else low) 1500 given;
      kept = sort (a: b: a.order < b.order) (filter (d: d.priority == best) given);
      values = catAttrs "value" kept;
      wrong = filter (value: !type.check value) values;
      merged =
        if wrong != [ ] then
          throw "A definition for option `${showPath path}' is not of type `${type.description}'."
        else if values == [ ] || (option ? default && best == 1500 && given == [ ]) then
          if option ? default then
            type.merge path [ option.default ]
          else if type ? empty then
            type.empty path
          else
            throw "The option `${showPath path}' is used but not defined."
        else
          type.merge path values;
    in
    (option.apply or (x: x)) merged;

  mergeTrees =
    trees:
    zipAttrsWith (
      _: values: if length values == 1 || isOption (head values) then head values else mergeTrees values
    ) trees;

  evalTree =
    path: tree: freeform: raw:
    let
      definitions = concatMap pushDown raw;
      of = name: catAttrs name definitions;
      known = mapAttrs (
        name: node:
        if isOption node then
          mergeOption (path ++ [ name ]) node (of name)
        else
          evalTree (path ++ [ name ]) node null (of name)
      ) tree;
      others = attrNames (removeAttrs (zipAttrsWith (_: _: null) definitions) (attrNames tree));
      free =
        if others == [ ] then
          { }
        else if freeform == null then
          throw "The option `${showPath (path ++ [ (head others) ])}' does not exist."
        else
          freeform.merge path (map (d: intersectAttrs (genAttrs others (_: null)) d) definitions);
    in
    free // known;

  evalModules =
    {
      modules,
      specialArgs ? { },
      path ? [ ],
    }:
    let
      result = evalTree path tree freeform (map (module: module.config) loaded);
      arguments = {
        inherit lib;
        config = result;
        options = tree;
      }
      // specialArgs;
      load =
        module:
        let
          opened = if isPath module || isString module then import module else module;
          called = if isFunction opened then opened arguments else opened;
          structured = called ? config || called ? options;
          normal = {
            options = called.options or { };
            config =
              if structured then
                called.config or { }
              else
                removeAttrs called [
                  "imports"
                  "_file"
                  "key"
                  "freeformType"
                ];
            freeform = called.freeformType or null;
          };
        in
        concatMap load (called.imports or [ ]) ++ [ normal ];
      loaded = concatMap load modules;
      tree = mergeTrees (map (module: module.options) loaded);
      freeform = foldl' (found: module: if module.freeform != null then module.freeform else found) null loaded;
    in
    {
      config = result;
      options = tree;
    };

  equal =
    path: values:
    if all (value: value == head values) values then
      head values
    else
      throw "The option `${showPath path}' has conflicting definition values.";

  scalar = description: check: {
    inherit description check;
    merge = equal;
  };

  types = {
    bool = scalar "boolean" isBool;
    int = scalar "signed integer" isInt;
    float = scalar "floating point number" isFloat;
    str = scalar "string" isString;
    port = scalar "16 bit unsigned integer" (v: isInt v && v >= 0 && v <= 65535);
    ints.positive = scalar "positive integer" (v: isInt v && v > 0);
    ints.unsigned = scalar "unsigned integer" (v: isInt v && v >= 0);
    path = scalar "path" (v: (isString v && substring 0 1 v == "/") || isPath v || (isAttrs v && v ? outPath));
    package = scalar "package" (v: isAttrs v && (v.type or null) == "derivation");
    enum = allowed: scalar "one of ${builtins.toJSON allowed}" (v: elem v allowed);
    strMatching =
      pattern: scalar "string matching the pattern ${pattern}" (v: isString v && builtins.match pattern v != null);
    lines = {
      description = "strings concatenated with \"\\n\"";
      check = isString;
      merge = _: concatStringsSep "\n";
    };
    anything = {
      description = "anything";
      check = _: true;
      merge =
        path: values:
        if all (value: isAttrs value && !(value ? outPath)) values then
          (types.attrsOf types.anything).merge path values
        else
          equal path values;
    };
    listOf = element: {
      description = "list of ${element.description}";
      check = isList;
      merge = path: values: map (value: mergeOption path { type = element; } [ value ]) (concatLists values);
      empty = _: [ ];
    };
    attrsOf = element: {
      description = "attribute set of ${element.description}";
      check = isAttrs;
      merge =
        path: values:
        let
          merged = zipAttrsWith (name: found: {
            raw = found;
            is = concatMap discharge found != [ ];
          }) (concatMap pushDown values);
        in
        mapAttrs (name: entry: mergeOption (path ++ [ name ]) { type = element; } entry.raw) (
          filterAttrs (_: entry: entry.is) merged
        );
      empty = _: { };
    };
    nullOr = inner: {
      description = "null or ${inner.description}";
      check = v: v == null || inner.check v;
      merge = path: values: if all (v: v == null) values then null else inner.merge path values;
    };
    oneOf = list: {
      description = concatStringsSep " or " (catAttrs "description" list);
      check = v: any (type: type.check v) list;
      merge =
        path: values:
        (head (filter (type: all type.check values) list ++ [ (throw "The option `${showPath path}' is mixed.") ])).merge path values;
    };
    either = a: b: types.oneOf [ a b ];
    submodule =
      module:
      let
        evaluated =
          path: values:
          (evalModules {
            modules = [ module ] ++ values;
            inherit path;
          }).config;
      in
      {
        description = "submodule";
        check = v: isAttrs v || isFunction v || isPath v;
        merge = evaluated;
        empty = path: evaluated path [ ];
      };
  };

  filterAttrs = keep: set: removeAttrs set (filter (name: !keep name set.${name}) (attrNames set));
  genAttrs = names: make: listToAttrs (map (name: { inherit name; value = make name; }) names);
  nameOf = value: if isString value then (builtins.parseDrvName value).name else value.pname or (builtins.parseDrvName value.name).name;
  versionOf = value: if isString value then (builtins.parseDrvName value).version else value.version or (builtins.parseDrvName value.name).version;
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;

  lib = {
    inherit
      all
      any
      attrNames
      attrValues
      concatLists
      concatMap
      concatStringsSep
      elem
      evalModules
      filter
      filterAttrs
      elemAt
      foldl'
      genAttrs
      genList
      hasAttr
      hasPrefix
      head
      isAttrs
      isBool
      isList
      isString
      length
      mapAttrs
      mkIf
      mkMerge
      mkOrder
      mkOverride
      tail
      types
      ;
    allUnique = list: length list == length (attrNames (listToAttrs (map (name: { inherit name; value = 0; }) list)));
    concatMapStringsSep = separator: make: list: concatStringsSep separator (map make list);
    concatMapAttrs = make: set: foldl' (a: b: a // b) { } (attrValues (mapAttrs make set));
    escapeShellArg = text: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] (toString text)}'";
    getAttrs = names: set: genAttrs names (name: set.${name});
    getExe = package: "${package}/bin/${package.meta.mainProgram or (nameOf package)}";
    getExe' = package: program: "${package}/bin/${program}";
    getName = nameOf;
    getVersion = versionOf;
    hasSuffix = suffix: text: builtins.match ".*${builtins.replaceStrings [ "." ] [ "\\." ] suffix}" text != null;
    hasInfix = infix: text: infix == "" || builtins.replaceStrings [ infix ] [ "" ] text != text;
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    intersectLists = keep: filter (value: elem value keep);
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };
    mapAttrs' = make: set: listToAttrs (map (name: make name set.${name}) (attrNames set));
    mapAttrsToList = make: set: map (name: make name set.${name}) (attrNames set);
    mkAfter = mkOrder 1500;
    mkBefore = mkOrder 500;
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkEnableOption =
      name:
      lib.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${name}.";
      };
    mkOption = option: option // { _type = "option"; };
    nameValuePair = name: value: { inherit name value; };
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    optionals = condition: list: if condition then list else [ ];
    recursiveUpdate =
      a: b:
      a
      // mapAttrs (
        name: value: if isAttrs value && isAttrs (a.${name} or null) then lib.recursiveUpdate a.${name} value else value
      ) b;
    removePrefix = prefix: text: if hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;
    toIntBase10 = text: builtins.fromJSON (elemAt (builtins.match "0*([0-9]+)" text) 0);
    unique = foldl' (seen: value: if elem value seen then seen else seen ++ [ value ]) [ ];
    versionAtLeast = a: b: builtins.compareVersions a b >= 0;
    versionOlder = a: b: builtins.compareVersions a b < 0;
    range = first: last: genList (i: first + i) (last - first + 1);

    fileset = {
      toSource = { root, ... }: root;
      unions = list: list;
    };
    setDefaultModuleLocation = _: module: module;
    licenses = {
      mit = { };
      asl20 = { };
    };
    platforms = {
      linux = [ "x86_64-linux" "aarch64-linux" ];
      unix = [ "x86_64-linux" "aarch64-linux" "aarch64-darwin" ];
    };
    trivial.release = "26.05";
  };
in
lib
