# The machine of ./builder.nix as an image for EC2: what boots, from what disk, in what format.
{
  config,
  lib,
  options,
  modulesPath,
  ...
}:

let
  # In MiB. The option moved after NixOS 24.11.
  size = 8192;
  isNew = options.virtualisation ? diskSize;
in
{
  imports = [
    ./builder.nix
    "${modulesPath}/../maintainers/scripts/ec2/amazon-image.nix"
  ];

  config = lib.mkMerge [
    {
      services.nix-broker-builder.enable = true;

      # The user-data is read by our own unit, before sshd; NixOS would take it for a configuration, after everything else.
      virtualisation.amazon-init.enable = lib.mkForce false;
      # Would be a second way in.
      services.amazon-ssm-agent.enable = lib.mkForce false;

      # What `broker image upload` takes; the default is a VHD for the service VM Import/Export.
      amazonImage.format = "raw";

      networking.hostName = "nix-broker-builder";
      system.stateVersion = lib.mkDefault config.system.nixos.release;
    }
    # Room for what is preloaded; the file system grows to the size of its volume when the machine boots.
    (lib.optionalAttrs isNew { virtualisation.diskSize = size; })
    (lib.optionalAttrs (!isNew) { amazonImage.sizeMB = size; })
  ];
}
