{
  description = "The configuration of a machine called tiger: some hundred derivations, of the kinds that a system has";

  # No inputs: the only program is a busybox that lies beside this file, so that nothing has to be downloaded.
  outputs = { self }:
    let
      system = "x86_64-linux";
      busybox = "${./bin}/busybox";
      nonce = builtins.readFile ./nonce;
      upTo = n: builtins.genList (i: i) n;
      run = name: script: attrs: derivation ({
        inherit name system nonce;
        builder = busybox;
        args = [ "sh" "-euc" "bb() { ${busybox} \"$@\"; }\n${script}\n:" ];
      } // attrs);

      # Fixed-output, as what is downloaded.
      source = i:
        let content = "source ${toString i} ${nonce}"; in
        run "source-${toString i}" "printf %s '${content}' > $out" {
          outputHashMode = "flat";
          outputHashAlgo = "sha256";
          outputHash = builtins.hashString "sha256" content;
        };

      # Every third package is compiled for the processor of tiger, which the machine that asks does not have.
      package = column: row: run "package-${toString column}-${toString row}" "bb cat $below > $out; echo $out >> $out" {
        below = if row == 0 then source column else package column (row - 1);
        requiredSystemFeatures = if (column + row) - (column + row) / 3 * 3 == 0 then [ "gccarch-znver3" ] else [ ];
      };

      # A file of /etc: quicker written than sent anywhere.
      file = i: run "etc-${toString i}" "echo ${toString i} > $out" {
        preferLocalBuild = true;
        allowSubstitutes = false;
      };
    in
    {
      nixosConfigurations.tiger.config.system.build.toplevel = run "nixos-system-tiger" ''
        bb mkdir $out
        bb cat $packages > $out/packages
        bb cat $files > $out/files
      '' {
        packages = map (column: package column 9) (upTo 20);
        files = map file (upTo 40);
      };
    };
}
